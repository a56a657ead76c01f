"""How a task is put to a backbone: token ids, labels as words, free texts, and what is read from the outputs."""
