//! The HTTP edge.

pub mod digest;
pub mod disposition;
pub mod multipart;
pub mod openapi;
pub mod range;
