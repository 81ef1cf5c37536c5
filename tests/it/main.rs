//! The one integration test binary: a module list, nothing else.

mod cli;
mod config;
mod fake_contract;
mod interrupted;
mod support;
mod upload;
