//! The one integration test binary: a module list, nothing else.

mod cli;
mod config;
mod conformance;
mod delete;
mod fake_contract;
mod fallback;
mod idempotency;
mod list;
mod names;
mod support;
mod sync;
mod two_gateways;
mod upload;
