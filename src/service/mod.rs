//! Use cases: what the gateway does with recordings, one file each. They speak to stores and the catalogue through
//! their traits and know neither HTTP nor SQL.
//!
//! Each public function says "safe to drop" (the caller may go away at any await and nothing is left behind) or
//! "runs detached" (it goes on to its end when the caller goes away).

pub mod audit;
pub mod cache;
pub mod delete;
mod disk;
pub mod download;
pub mod error;
pub mod events;
pub mod health;
pub mod jobs;
pub mod known_files;
pub mod list;
mod peers;
pub mod rebuild;
pub mod recover;
pub mod sessions;
mod sync;
pub mod upload;
pub mod verify;
pub mod work;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

pub use self::error::ServiceError;
use crate::catalog::{Catalog, Origin};
use crate::domain::media::TypeRules;
use crate::runtime::tasks::Tasks;
use crate::spool::{Reserve, Room, Spool};
pub use crate::storage::peer::HOP;
use crate::storage::peer::PeerClient;
use crate::storage::tiered::TieredStore;

/// What every use case works with. Clones share it.
#[derive(Clone)]
pub struct Services {
    /// The memory.
    pub catalog: Arc<dyn Catalog>,
    /// Who makes the changes: a client's request, or the gateway itself.
    pub origin: Arc<Origin>,
    /// The stores in their roles.
    pub stores: Arc<TieredStore>,
    /// Where incoming bytes live.
    pub spool: Spool,
    /// Tasks that outlive their request.
    pub tasks: Tasks,
    /// Rung when there is new work for the background.
    pub bell: watch::Sender<()>,
    /// What waits because the cloud failed.
    pub put_off: Arc<work::PutOff>,
    /// What the configuration lays down.
    pub rules: Arc<Rules>,
    /// Uploads that may run at once.
    pub upload_slots: Arc<tokio::sync::Semaphore>,
    /// Held by the one verification that runs.
    pub verifying: Arc<tokio::sync::Semaphore>,
    /// Room on the disk and who was promised it.
    pub room: Room,
    /// Room that the catalogue gets when the disk is full.
    pub reserve: Reserve,
    /// Cloud recordings that are played from here.
    pub cache: cache::Cache,
    /// Files of which the catalogue knows.
    pub known_files: known_files::KnownFiles,
    /// What happens, for those who listen.
    pub events: events::Events,
    /// How many refusals may be noted.
    pub denials: audit::Denials,
    /// Uploads of which it is not known whether they were promised.
    pub unsure: upload::UnsureUploads,
    /// Speaks to the other gateways on the catalogue.
    pub peers: PeerClient,
}

impl Services {
    /// The same, for what a client asks for: it goes into the audit.
    pub fn for_client(&self, actor: &str, request_id: &str) -> Self {
        let origin = Origin { actor: actor.to_owned(), request_id: request_id.to_owned() };
        Self { origin: Arc::new(origin), ..self.clone() }
    }

    /// The same, for what the gateway does by itself because of `cause`.
    pub fn for_itself(&self, cause: &str) -> Self {
        Self { origin: Arc::new(Origin::gateway(cause)), ..self.clone() }
    }
}

/// What the configuration lays down for the use cases.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Largest recording, in bytes.
    pub max_bytes: u64,
    /// Media types that are taken.
    pub types: TypeRules,
    /// Goes into file names; empty for none.
    pub node: String,
    /// Where other gateways on the same catalogue reach this one.
    pub advertised_url: String,
    /// The bucket's name, as answers show it.
    pub bucket: String,
    /// Whether a local copy stays after the cloud has one.
    pub keep_local: bool,
    /// How a cloud copy is compared before the local one goes.
    pub verify: Verify,
    /// How long answers to keyed requests are kept.
    pub idempotency_ttl: Duration,
}

/// How a cloud copy is compared with the local one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verify {
    /// Its size.
    Size,
    /// Its size, and its entity tag where that is an MD5.
    Etag,
    /// Its bytes, read back.
    Read,
}
