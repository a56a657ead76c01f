"""Which runs make a number, with what interval, and when it may stand beside a printed one."""
