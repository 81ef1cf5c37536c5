//! What the gateway does about a disk that gets full: gives up what it can spare, keeps a reserve for the catalogue, says
//! so once. Apart from `health`, which only looks.

use bytesize::ByteSize;

use super::Services;
use crate::catalog::CatalogError;
use crate::spool::RESERVE_BYTES;
use crate::storage::chain;

impl Services {
    /// Makes a change of the catalogue that must not fail for want of room, because it is what makes room in the
    /// end. On a full disk it gets what the cache has, then the reserve, and a second try.
    pub(super) async fn even_when_full<T, F>(&self, change: impl Fn() -> F) -> Result<T, CatalogError>
    where
        F: Future<Output = Result<T, CatalogError>>,
    {
        match change().await {
            Err(CatalogError::Full(_)) => {}
            done => return done,
        }
        let (room, reserve) = (self.room.clone(), self.reserve.clone());
        let given_up = tokio::task::spawn_blocking(move || {
            room.relieve(RESERVE_BYTES);
            reserve.give_up()
        });
        match given_up.await {
            Ok(Ok(())) => tracing::warn!("the disk is full; the reserve was given up for the catalogue"),
            Ok(Err(error)) => tracing::error!(%error, "the disk is full and the reserve cannot be given up"),
            Err(_) => {}
        }
        change().await
    }

    /// Gives up what can be spared if the disk is close to its mark or below, and makes the reserve again if there is room.
    /// Returns whether new uploads are refused now; `was_short` is what it returned before. Safe to drop.
    pub async fn tend_disk(&self, was_short: bool) -> bool {
        let (room, reserve) = (self.room.clone(), self.reserve.clone());
        let tended = tokio::task::spawn_blocking(move || {
            let mut figures = room.figures()?;
            if figures.cramped() > 0 {
                room.relieve(figures.cramped());
                figures = room.figures()?;
            }
            // Twice its size: the catalogue needs room beside it too.
            if !reserve.is_whole() && figures.free.saturating_sub(figures.promised) >= 2 * RESERVE_BYTES {
                reserve.restore()?;
            }
            Ok::<_, std::io::Error>(figures)
        });
        let figures = match tended.await {
            Ok(Ok(figures)) => figures,
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "the disk could not be tended");
                return was_short;
            }
            Err(_) => return was_short,
        };
        let short = figures.lacking() > 0;
        let (free, mark) = (ByteSize(figures.free), ByteSize(figures.mark));
        match (was_short, short) {
            (false, true) => {
                tracing::warn!(%free, %mark, "the disk is below its mark; new uploads are refused")
            }
            (true, false) => tracing::info!(%free, %mark, "there is room on the disk again"),
            _ => {}
        }
        short
    }
}
