//! Words of the product: pure values and rules, no I/O, no async. Every other room speaks in these.

pub mod backoff;
pub mod digest;
pub mod media;
pub mod merge;
pub mod names;
pub mod page;
pub mod recording;

pub use digest::ContentDigest;
pub use names::{Filename, GatewayId, NameError, NameStem, ObjectKey, RecordingType, SessionId};
pub use recording::{Durability, Recording, StoreKind, StoreSet};
