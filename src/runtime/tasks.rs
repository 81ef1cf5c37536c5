//! Tasks that outlive the request they came from, and the signal to stop: what was spawned here is waited for at the
//! end. Connections are not; the accept loop has its own grace for them.

use std::future::Future;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns and tracks. Clones share the set.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
}

impl Tasks {
    /// Runs `task` to its end, also when nobody waits for it.
    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tracker.spawn(task)
    }

    /// Told to loops: finish what you are at and end.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Tells everybody to stop and waits until the last task ended.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// How many are running.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }
}
