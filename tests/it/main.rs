//! The one integration test binary: a module list, nothing else.

mod cli;
mod config;
mod disk_full;
mod download;
mod fake_contract;
mod hostile;
mod interrupted;
mod limits;
mod operations;
mod problems;
mod protocol;
mod support;
mod upload;
