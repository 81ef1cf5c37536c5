//! The gateways on this catalogue, and facts about the catalogue itself.

use async_trait::async_trait;
use sqlx::Row;

use super::rows::time_of;
use super::{Result, SqlCatalog, now_us, sql};
use crate::catalog::{Gateways, Peer};
use crate::domain::GatewayId;

#[async_trait]
impl Gateways for SqlCatalog {
    fn gateway_id(&self) -> &GatewayId {
        &self.gateway
    }

    async fn register(&self, node: &str, url: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        sql("INSERT INTO gateways (id, node, url, seen_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (id) DO UPDATE SET node = $2, url = $3, seen_at = $4")
        .bind(self.gateway.as_str())
        .bind(node)
        .bind(url)
        .bind(now_us())
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }

    async fn still_here(&self) -> Result<()> {
        let mut tx = self.begin().await?;
        sql("UPDATE gateways SET seen_at = $2 WHERE id = $1")
            .bind(self.gateway.as_str())
            .bind(now_us())
            .execute(&mut *tx)
            .await?;
        tx.commit().await
    }

    async fn peers(&self) -> Result<Vec<Peer>> {
        let rows = sql("SELECT id, node, url, seen_at FROM gateways WHERE id <> $1 ORDER BY id")
            .bind(self.gateway.as_str())
            .fetch_all(&mut *self.snapshot().await?)
            .await?;
        let peer = |row: &sqlx::any::AnyRow| -> Result<Peer> {
            Ok(Peer {
                id: GatewayId(row.try_get(0)?),
                node: row.try_get(1)?,
                url: row.try_get(2)?,
                seen_at: time_of(row.try_get(3)?)?,
            })
        };
        rows.iter().map(peer).collect()
    }

    async fn fact(&self, name: &str) -> Result<Option<String>> {
        let row = sql("SELECT value FROM facts WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *self.snapshot().await?)
            .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    async fn set_fact(&self, name: &str, value: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        sql("INSERT INTO facts (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2")
            .bind(name)
            .bind(value)
            .execute(&mut *tx)
            .await?;
        tx.commit().await
    }

    async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}
