"""From a task's description to examples: where its tables come from, and which rows and columns count."""
