//! The one integration test binary: a module list, nothing else.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod cache;
mod catalogue_copy;
mod check;
mod cli;
mod config;
mod conformance;
mod cors;
mod delete;
mod disk_full;
mod download;
mod fake_contract;
mod fallback;
mod hostile;
mod idempotency;
mod interrupted;
mod limits;
mod list;
mod migrate;
mod names;
mod operations;
mod page;
mod parked;
mod problems;
mod protocol;
mod resumable_sync;
mod shared_catalogue;
mod support;
mod sync;
mod tidy;
mod two_gateways;
mod upload;
mod wire;
