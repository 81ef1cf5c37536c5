//! A proxy on the loopback that breaks the wire between the gateway and the fake cloud: it delays, throttles, cuts,
//! swallows and lies, for every connection, until it is told otherwise.
//!
//! Apart from the faults of the fake: those are a server that fails, these are a network that does. It knows nothing
//! of what it carries, but where an answer ends.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// What is wrong with the wire. Bytes are counted per connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wire {
    Well,
    /// Every piece takes so long, both ways.
    Latency(Duration),
    /// Bytes per second towards the cloud.
    Bandwidth(u64),
    /// Reset after so many bytes towards the cloud.
    ResetUp(u64),
    /// Reset after so many bytes of answers.
    ResetDown(u64),
    /// After so many bytes towards the cloud the cloud's side says that it is done, and nothing more.
    HalfClose(u64),
    /// After so many bytes towards the cloud nothing passes any more, and nobody says so.
    BlackHole(u64),
    /// The connection ends in good order after so many bytes of answers.
    Truncate(u64),
    /// The cloud does what it is asked, and the answer is a page with this status.
    Lie(u16),
    /// The first exchange passes; whoever uses the connection again is reset.
    StalePool,
}

/// The proxy. It ends with this.
pub struct WireProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    to: SocketAddr,
    wire: Mutex<Wire>,
    /// Connections that the wire broke.
    broken: AtomicU64,
    connections: Mutex<Vec<JoinHandle<()>>>,
}

impl WireProxy {
    /// In front of `to`, on a free port; well at first.
    pub fn start(to: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            to,
            wire: Mutex::new(Wire::Well),
            broken: AtomicU64::new(0),
            connections: Mutex::default(),
        });
        let mut proxy =
            Self { address: SocketAddr::from(([127, 0, 0, 1], 0)), shared, listening: Mutex::default() };
        proxy.address = proxy.listen();
        proxy
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, for new connections; the ones there are end.
    pub fn becomes(&self, wire: Wire) {
        *self.shared.wire.lock().unwrap() = wire;
        self.shared.connections.lock().unwrap().drain(..).for_each(|connection| connection.abort());
    }

    /// Nobody listens any more: connections are refused.
    pub fn refuse(&self) {
        if let Some(listening) = self.listening.lock().unwrap().take() {
            listening.abort();
        }
        self.becomes(Wire::Well);
    }

    /// Listens again where it did.
    pub async fn accept_again(&self) {
        loop {
            // The port is free once the aborted task was dropped.
            if std::net::TcpStream::connect(self.address).is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.listen();
    }

    /// How many connections the wire broke.
    pub fn broken(&self) -> u64 {
        self.shared.broken.load(Ordering::SeqCst)
    }

    fn listen(&self) -> SocketAddr {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        let listener = socket.listen(1024).unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), self.shared.clone());
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (wire, inner) = (*shared.wire.lock().unwrap(), shared.clone());
                let connection = tokio::spawn(async move {
                    let _ = carry(client, wire, &inner).await;
                });
                shared.connections.lock().unwrap().push(connection);
            }
        });
        *self.listening.lock().unwrap() = Some(listening);
        address
    }
}

impl Drop for WireProxy {
    fn drop(&mut self) {
        self.refuse();
    }
}

/// The other end hears a reset instead of an end.
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}

async fn carry(mut client: TcpStream, wire: Wire, shared: &Shared) -> std::io::Result<()> {
    let mut cloud = TcpStream::connect(shared.to).await?;
    client.set_nodelay(true)?;
    cloud.set_nodelay(true)?;
    let broke = || shared.broken.fetch_add(1, Ordering::SeqCst);
    let (mut up, mut down) = (0u64, 0u64);
    let (mut from_client, mut from_cloud) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let (mut client_done, mut answered) = (false, false);
    loop {
        let (left_up, left_down) = match wire {
            Wire::ResetUp(most) | Wire::HalfClose(most) | Wire::BlackHole(most) => (most - up, u64::MAX),
            Wire::ResetDown(most) | Wire::Truncate(most) => (u64::MAX, most - down),
            _ => (u64::MAX, u64::MAX),
        };
        if left_up == 0 || left_down == 0 {
            broke();
            match wire {
                Wire::HalfClose(_) => {
                    client.shutdown().await?;
                    // It still takes in what comes, and passes nothing on.
                    while client.read(&mut from_client).await? > 0 {}
                }
                Wire::BlackHole(_) => std::future::pending().await,
                Wire::Truncate(_) => client.shutdown().await?,
                _ => {
                    // What the cloud has not read yet still reaches it, as on a real line.
                    reset(client);
                    let _ = cloud.shutdown().await;
                }
            }
            return Ok(());
        }
        let room = |left: u64, buffer: &[u8]| usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let (room_up, room_down) = (room(left_up, &from_client), room(left_down, &from_cloud));
        tokio::select! {
            read = client.read(&mut from_client[..room_up]), if !client_done => {
                let n = read?;
                if n == 0 {
                    client_done = true;
                    cloud.shutdown().await?;
                    continue;
                }
                match wire {
                    Wire::StalePool if answered => {
                        broke();
                        reset(client);
                        return Ok(());
                    }
                    Wire::Latency(time) => tokio::time::sleep(time).await,
                    Wire::Bandwidth(rate) => {
                        tokio::time::sleep(Duration::from_secs_f64(n as f64 / rate as f64)).await;
                    }
                    _ => {}
                }
                up += n as u64;
                cloud.write_all(&from_client[..n]).await?;
            }
            read = cloud.read(&mut from_cloud[..room_down]) => {
                let n = read?;
                if n == 0 {
                    client.shutdown().await?;
                    return Ok(());
                }
                answered = true;
                match wire {
                    Wire::Lie(status) => {
                        broke();
                        let page = "<html><body>Welcome to our network</body></html>";
                        let length = page.len();
                        let lie = format!(
                            "HTTP/1.1 {status} Lie\r\ncontent-type: text/html\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{page}"
                        );
                        client.write_all(lie.as_bytes()).await?;
                        client.shutdown().await?;
                        return Ok(());
                    }
                    Wire::Latency(time) => tokio::time::sleep(time).await,
                    _ => {}
                }
                down += n as u64;
                client.write_all(&from_cloud[..n]).await?;
            }
        }
    }
}
