//! Part of Quarry.

pub mod swift;
