//! The one integration test binary: a module list, nothing else.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod check;
mod cli;
mod config;
mod cors;
mod disk_full;
mod download;
mod fake_contract;
mod hostile;
mod interrupted;
mod limits;
mod operations;
mod page;
mod parked;
mod problems;
mod protocol;
mod support;
mod tidy;
mod upload;
