//! Part of Quarry.
