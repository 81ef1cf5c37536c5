//! The one integration test binary: a module list, nothing else.

mod cli;
mod config;
mod fake_contract;
mod hostile;
mod interrupted;
mod limits;
mod support;
mod upload;
