//! Driven by time: work that no request waits for. Each loop ends when the process is told to stop, after the piece
//! it is at.

mod runner;
mod upkeep;

pub use runner::run_jobs;
pub use upkeep::{look_around, look_into_bucket, run_upkeep};
