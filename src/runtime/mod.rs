//! Plumbing of the process: tasks that outlive a request, shutdown, logging, the list of metrics.

pub mod descriptors;
pub mod logging;
pub mod metrics;
pub mod tasks;
