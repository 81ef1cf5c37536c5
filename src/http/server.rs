//! The accept loop: connections with a header timeout, a limit on their number, and a stop that lets running uploads
//! finish for a while.

mod prompt;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use self::prompt::Prompt;
use super::middleware::MAX_HEADER_BYTES;
use crate::runtime::tasks::Tasks;

/// How connections are treated.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// How long a request's head may take, and how long a kept connection may stay silent.
    pub header_timeout: Duration,
    /// How long running requests may go on after the stop.
    pub shutdown_grace: Duration,
    /// Connections at once; further ones wait to be accepted.
    pub max_connections: usize,
}

/// HTTP/2 windows: bytes a client may send ahead. The protocol's 64 KiB hold a distant client at a crawl.
const HTTP2_WINDOW_BYTES: u32 = 8 << 20;

/// Bytes that may wait in a connection's buffer.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes that a connection reads at once, by how many are open when it comes: a buffer stays as large as what ever came at
/// once, and a thousand slow uploads are to stay small. Each is a little less than a power of two, that the buffer then
/// has: filled, it would double.
const READS: [(usize, u64); 2] = [(64, 15 << 10), (8, 60 << 10)];

/// Connections that the system may hold until they are accepted, as far as it allows (net.core.somaxconn). With the usual
/// 128 a thousand clients that come within a tenth of a second are turned away, some of them after they began to send.
const BACKLOG: u32 = 4096;

/// Listens at the first of the host's addresses that can be had.
///
/// # Errors
/// Why the last of them could not be.
pub async fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut failed = io::Error::new(io::ErrorKind::InvalidInput, "the host has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let listener = socket.and_then(|socket| {
            // The port can be had again while connections of the gateway before are still closing.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        });
        match listener {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Serves until `tasks` is told to stop, then lets running requests finish within the grace. Returns how many
/// connections were cut off then.
pub async fn serve(listener: TcpListener, router: Router, limits: ServerLimits, tasks: Tasks) -> usize {
    let mut builder = Builder::new(TokioExecutor::new());
    // hyper's timeouts are off without a timer.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .initial_stream_window_size(HTTP2_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_WINDOW_BYTES)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(limits.max_connections));
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
            () = tasks.stopping().cancelled() => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    wait_after(&error).await;
                    continue;
                }
            },
            () = tasks.stopping().cancelled() => break,
        };
        let most =
            READS.iter().find(|(open, _)| graceful.count() >= *open).map_or(u64::MAX, |(_, most)| *most);
        let connection = builder.serve_connection(
            // Without this an upload over HTTP/2 waits for acknowledgements that wait for it.
            TokioIo::new(Prompt::new(without_delay(stream), limits.header_timeout, most)),
            TowerToHyperService::new(router.clone()),
        );
        let connection = graceful.watch(connection.into_owned());
        // Not one of the tracked tasks: those are waited for without a limit.
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::debug!(error = %error, "a connection ended early");
            }
        });
    }
    drop(listener);
    let running = graceful.count();
    let mut finished = pin!(graceful.shutdown());
    tokio::select! {
        () = &mut finished => 0,
        () = tokio::time::sleep(limits.shutdown_grace) => running,
    }
}

fn without_delay(stream: TcpStream) -> TcpStream {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = %error, "the connection is gone already");
    }
    stream
}

/// No file descriptors left, for example: accepting again at once would spin.
async fn wait_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::error!(error = %error, "cannot accept connections; trying again in a second");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients that come all at once are held until they are accepted.
    #[tokio::test]
    async fn a_rush_of_connections_is_not_turned_away() {
        let listener = listen("127.0.0.1", 0).await.unwrap();
        let address = listener.local_addr().unwrap();
        let system = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
        let clients = 400.min(system);
        let rush = futures_util::future::try_join_all((0..clients).map(|_| TcpStream::connect(address)));
        let held = tokio::time::timeout(Duration::from_millis(900), rush).await;
        assert_eq!(held.expect("without a second try, which comes after a second").unwrap().len(), clients);
    }
}
