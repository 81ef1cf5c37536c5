//! Words of the product: pure values, no I/O, no async.

pub mod media;
