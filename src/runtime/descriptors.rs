//! How many files and connections the process may have open, and how many connections fit into that: an upload that
//! was let in must be able to end, so connections never take the descriptors that its end needs.
//!
//! Apart because the limit is the process's own. What a connection carries is not known here.

use rustix::process::{Resource, getrlimit, setrlimit};

/// What a connection may need: itself, its upload's file, its connection to the cloud.
const PER_CONNECTION: u64 = 3;
/// Left for the catalogue, directories, listings and background work.
const KEPT: u64 = 64;
/// Served in any case.
const FEWEST: usize = 8;

/// Raises the soft limit on open files to the hard one, and returns how many of the `wanted` connections fit below it.
/// Says in the log when they do not all fit.
pub fn connections_that_fit(wanted: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let before = limit.current;
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!(error = %error, "the limit on open files stays as it is");
            limit.current = before;
        }
    }
    let fit = fit_below(limit.current);
    if fit < wanted {
        tracing::warn!(
            open_files = limit.current,
            connections = fit,
            "fewer connections at once than server.max_connections: the limit on open files allows no more; raise it (ulimit -n, LimitNOFILE)"
        );
    }
    wanted.min(fit)
}

fn fit_below(limit: Option<u64>) -> usize {
    let Some(limit) = limit else { return usize::MAX };
    usize::try_from(limit.saturating_sub(KEPT) / PER_CONNECTION).unwrap_or(usize::MAX).max(FEWEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_of_what_is_not_kept() {
        assert_eq!([0, 64, 160, 1024, 4096].map(|limit| fit_below(Some(limit))), [8, 8, 32, 320, 1344]);
        assert_eq!(fit_below(None), usize::MAX);
    }
}
