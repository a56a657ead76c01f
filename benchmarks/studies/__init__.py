"""What is measured beside scores: parameters, time, memory, votes, neighbors."""
