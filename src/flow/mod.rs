//! Flow matching: time grids, samplers, trajectories. Time runs 0 (noise) to 1 (data) everywhere.
