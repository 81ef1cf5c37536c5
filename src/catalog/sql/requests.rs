//! Requests that carry an idempotency key.

use async_trait::async_trait;
use sqlx::Row;

use super::{Lost, Result, SqlCatalog, new_id, now_us, sql};
use crate::catalog::{Answered, Begun, RequestKey, Requests};

#[async_trait]
impl Requests for SqlCatalog {
    async fn begin_request(&self, request: &RequestKey) -> Result<Begun> {
        // Stands where the fingerprint of its answer will, by which a request is known whose begin was lost.
        let mark = new_id();
        let mut tx = self.begin().await?;
        let first =
            sql("INSERT INTO idempotent_requests (scope, request_key, created_at, gateway, fingerprint)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (scope, request_key) DO NOTHING")
            .bind(request.scope.as_str())
            .bind(request.key.as_str())
            .bind(now_us())
            .bind(self.gateway.as_str())
            .bind(mark.as_str())
            .execute(&mut *tx)
            .await?
            .rows_affected()
                > 0;
        if first {
            if let Err(error) = tx.commit().await {
                self.remember_lost(Lost::Request { request: request.clone(), mark });
                return Err(error.into());
            }
            return Ok(Begun::First);
        }
        let row =
            sql("SELECT fingerprint, answer FROM idempotent_requests WHERE scope = $1 AND request_key = $2")
                .bind(request.scope.as_str())
                .bind(request.key.as_str())
                .fetch_one(&mut *tx)
                .await?;
        let (fingerprint, answer): (Option<String>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        Ok(match fingerprint.zip(answer) {
            Some((fingerprint, answer)) => Begun::Answered(Answered { fingerprint, answer }),
            None => Begun::Running,
        })
    }

    async fn forget_request(&self, request: &RequestKey) -> Result<()> {
        let mut tx = self.begin().await?;
        sql("DELETE FROM idempotent_requests WHERE scope = $1 AND request_key = $2 AND answer IS NULL")
            .bind(request.scope.as_str())
            .bind(request.key.as_str())
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn take_over_request(&self, request: &RequestKey) -> Result<bool> {
        let mut tx = self.begin().await?;
        let abandoned = sql("UPDATE reservations SET scope = NULL, request_key = NULL
             WHERE scope = $1 AND request_key = $2 AND gateway = $3 AND process <> $4")
        .bind(request.scope.as_str())
        .bind(request.key.as_str())
        .bind(self.gateway.as_str())
        .bind(self.process.as_str())
        .execute(&mut *tx)
        .await?
        .rows_affected()
            > 0;
        if abandoned {
            sql("DELETE FROM idempotent_requests WHERE scope = $1 AND request_key = $2 AND answer IS NULL")
                .bind(request.scope.as_str())
                .bind(request.key.as_str())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(abandoned)
    }

    async fn expire_requests(&self, older_than_us: i64) -> Result<()> {
        let mut tx = self.begin().await?;
        sql("DELETE FROM idempotent_requests WHERE answer IS NOT NULL AND created_at < $1")
            .bind(older_than_us)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}
