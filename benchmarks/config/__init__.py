"""What a run is asked to be: typed fields, files of conf/, overrides, sweeps; which of it a result follows from."""
