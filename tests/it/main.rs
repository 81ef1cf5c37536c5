//! The one integration test binary: a module list, nothing else.

mod fake_contract;
mod support;
