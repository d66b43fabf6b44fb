"""What concerns the machine: files, devices, processes, versions, counters."""
