//! The HTTP edge.

pub mod digest;
pub mod disposition;
pub mod multipart;
pub mod range;
