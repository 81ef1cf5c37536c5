//! The one rule for suites whose real service is absent: they say so by name, and fail where nothing may be skipped.
//!
//! Apart so that no suite skips in a way of its own. What makes a service present is the suites' own business.

use std::io::Write as _;

/// Prints `SKIPPED suite: what is missing` and returns.
///
/// # Panics
/// When `TESTS_FORBID_SKIP` is `1`, as it is where everything should be there.
pub fn skip_or_fail(suite: &str, missing: &str) {
    let line = format!("SKIPPED {suite}: {missing}");
    assert!(std::env::var("TESTS_FORBID_SKIP").as_deref() != Ok("1"), "{line}");
    // Not `eprintln!`: the test runner swallows that of a test that passes, and `tests/run` collects these lines.
    let _ = writeln!(std::io::stderr(), "\n{line}");
}
