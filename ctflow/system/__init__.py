"""The machine: files, devices, processes, versions, counters, progress."""
