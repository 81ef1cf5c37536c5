//! One suite over every store and one story over every catalogue: what the ports promise, asked of each adapter.

mod catalogs;
mod stores;
