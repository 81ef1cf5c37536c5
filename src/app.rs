//! Composition root: builds the parts out of the configuration.

use crate::cli::check::CheckLine;
use crate::config::{Config, Loaded};

/// Runs the gateway until it is told to stop.
///
/// # Errors
/// What kept it from starting.
pub async fn serve(loaded: Loaded) -> anyhow::Result<()> {
    anyhow::bail!("there is nothing to serve on {} in this build yet", loaded.config.server.host)
}

/// Asks the catalogue and the cloud whether they can be used.
pub async fn check(_config: &Config) -> Vec<CheckLine> {
    Vec::new()
}
