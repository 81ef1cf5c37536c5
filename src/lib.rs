//! A gateway that takes recordings from browsers and scripts and gets them into Supabase Storage, or onto the
//! local disk when the cloud cannot be had, without losing one. `ARCHITECTURE.md` is the map of the rooms.

pub mod app;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod domain;
pub mod http;
pub mod jobs;
pub mod runtime;
pub mod service;
pub mod spool;
pub mod storage;
