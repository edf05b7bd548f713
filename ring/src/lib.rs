//! Placement: partitions to devices. Pure; knows nobody.
