//! The gateway behind a broken wire.
