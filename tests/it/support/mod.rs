//! What the suites share: the gateway under test, its clients and the fake cloud.

pub mod fake_supabase;
pub mod skip;
