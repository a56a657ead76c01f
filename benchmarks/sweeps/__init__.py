"""Many runs: what is left to do, what it will take, who does it."""
