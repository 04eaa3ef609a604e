"""How a stage is started and uses processes, cores and devices."""
