//! The one integration test binary: a module list, nothing else.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod audit;
mod cache;
mod catalogue_copy;
mod check;
mod cli;
mod config;
mod conformance;
mod cors;
mod crash;
mod delete;
mod disk_full;
mod download;
mod environment;
mod events;
mod fake_contract;
mod fallback;
mod hostile;
mod idempotency;
mod interrupted;
mod jobs_api;
mod limits;
mod list;
mod migrate;
mod model;
mod names;
mod nth_fault;
mod operations;
mod page;
mod parked;
mod problems;
mod protocol;
mod recover;
mod reliability;
mod resumable_sync;
mod runner;
mod shared_catalogue;
mod stopped;
mod support;
mod sync;
mod tidy;
mod two_gateways;
mod upload;
mod verify;
mod wire;
