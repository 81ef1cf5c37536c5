//! The one integration test binary: a module list, nothing else.

mod config;
mod support;
