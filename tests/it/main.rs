//! The one integration test binary: a module list, nothing else.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod check;
mod cli;
mod config;
mod cors;
mod fake_contract;
mod parked;
mod support;
mod upload;
