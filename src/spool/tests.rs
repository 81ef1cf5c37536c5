//! The spool: what goes in comes out, once, whole, or not at all.

use futures_util::StreamExt;
use sha2::{Digest, Sha256};

use super::*;

fn spool() -> (tempfile::TempDir, Spool) {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path().join(".spool")).unwrap();
    (dir, spool)
}

fn files(spool: &Spool) -> usize {
    std::fs::read_dir(spool.dir()).unwrap().count()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

async fn collect(follower: Follower) -> Result<Vec<u8>, SpoolError> {
    let mut all = Vec::new();
    let mut bytes = follower.bytes;
    while let Some(chunk) = bytes.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

#[tokio::test]
async fn frames_of_any_size_arrive_whole_and_hashed() {
    let (_dir, spool) = spool();
    for frame in [1usize, 1000, 16 << 10, 500_000, 3 << 20] {
        let data = pattern(if frame == 1 { 100_000 } else { 5_300_001 });
        let mut writer = spool.create(&uuid::Uuid::now_v7().to_string()).unwrap();
        let early = tokio::spawn(collect(writer.reader().follow()));
        for piece in data.chunks(frame) {
            writer.push(piece).await.unwrap();
        }
        let done = writer.finish().await.unwrap();
        assert_eq!(done.size_bytes, data.len() as u64);
        assert_eq!(done.sha256.as_bytes()[..], Sha256::digest(&data)[..]);
        let done = done.publish();
        assert_eq!(early.await.unwrap().unwrap(), data, "a follower from the start");
        assert_eq!(collect(done.follow()).await.unwrap(), data, "and one that starts again from 0");
        drop(done);
        assert_eq!(files(&spool), 0);
    }
}

#[tokio::test]
async fn what_goes_past_the_page_cache_arrives_whole_and_hashed() {
    let (_dir, spool) = spool();
    for taken in [true, false] {
        spool.past_cache.store(taken, std::sync::atomic::Ordering::Relaxed);
        for len in [1, 4096, 128 << 10, (512 << 10) - 1, 512 << 10, (1 << 20) + 4097, 5_300_001] {
            let data = pattern(len);
            let mut writer = spool.create(&uuid::Uuid::now_v7().to_string()).unwrap().unfollowed();
            let early = tokio::spawn(collect(writer.reader().follow()));
            for piece in data.chunks(300_000) {
                writer.push(piece).await.unwrap();
            }
            let done = writer.finish().await.unwrap();
            assert_eq!(done.size_bytes, len as u64);
            assert_eq!(done.sha256.as_bytes()[..], Sha256::digest(&data)[..]);
            let done = done.publish();
            assert_eq!(early.await.unwrap().unwrap(), data, "one that follows all the same");
            assert_eq!(done.file().metadata().unwrap().len(), len as u64);
            assert_eq!(collect(done.follow()).await.unwrap(), data);
        }
    }
}

#[tokio::test]
async fn past_and_through_the_page_cache_in_turns_is_one_file() {
    let (_dir, spool) = spool();
    let data = pattern(6_000_001);
    let mut writer = spool.create(&uuid::Uuid::now_v7().to_string()).unwrap().unfollowed();
    let mut others = Vec::new();
    for (n, piece) in data.chunks(700_000).enumerate() {
        // Blocks are too small to go past the cache while many upload.
        match n % 2 {
            0 => others.clear(),
            _ => others.extend((0..100).map(|_| spool.blocks().enter())),
        }
        writer.push(piece).await.unwrap();
    }
    let done = writer.finish().await.unwrap();
    assert_eq!(done.sha256.as_bytes()[..], Sha256::digest(&data)[..]);
    assert_eq!(collect(done.publish().follow()).await.unwrap(), data);
}

#[tokio::test]
async fn an_empty_upload_is_complete_too() {
    let (_dir, spool) = spool();
    let writer = spool.create(&uuid::Uuid::now_v7().to_string()).unwrap();
    let reader = writer.reader();
    let done = writer.finish().await.unwrap();
    assert_eq!(done.size_bytes, 0);
    done.publish();
    assert_eq!(collect(reader.follow()).await.unwrap(), b"");
}

#[tokio::test]
async fn an_abandoned_upload_is_an_error_for_followers_and_leaves_no_file() {
    let (_dir, spool) = spool();
    let mut writer = spool.create(&uuid::Uuid::now_v7().to_string()).unwrap();
    let reader = writer.reader();
    let follower = tokio::spawn(collect(reader.follow()));
    writer.push(&pattern(2_500_000)).await.unwrap();
    drop(writer);
    assert!(matches!(follower.await.unwrap(), Err(SpoolError::Abandoned)));
    assert!(matches!(reader.completed().await, Err(SpoolError::Abandoned)));
    drop(reader);
    // A write that was under way may be the last holder.
    let gone = async {
        while files(&spool) > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), gone).await.expect("the file is removed");
}

#[tokio::test]
async fn bytes_that_were_judged_and_found_wrong_never_end() {
    let (_dir, spool) = spool();
    let mut writer = spool.create(&uuid::Uuid::now_v7().to_string()).unwrap();
    let reader = writer.reader();
    writer.push(b"wrong").await.unwrap();
    let done = writer.finish().await.unwrap();
    assert_eq!(reader.complete_size(), None);
    drop(done);
    assert!(matches!(reader.completed().await, Err(SpoolError::Abandoned)));
}

#[tokio::test]
async fn what_a_crash_left_is_known_by_its_upload() {
    let (_dir, spool) = spool();
    std::fs::write(spool.dir().join("form-left"), b"half").unwrap();
    std::fs::write(spool.dir().join("copy-x"), b"").unwrap();
    let mut leftovers = spool.leftovers().unwrap();
    leftovers.sort_by(|a, b| b.upload_id.cmp(&a.upload_id));
    let told: Vec<_> = leftovers.iter().map(|left| (left.upload_id.as_deref(), left.size_bytes)).collect();
    assert_eq!(told, [(Some("left"), 4), (None, 0)]);
    leftovers[1].remove().unwrap();
    let reader = leftovers[0].open(spool.blocks().clone()).unwrap();
    assert_eq!((reader.complete_size(), reader.is_safe()), (Some(4), true));
    reader.leave();
    drop(reader);
    assert_eq!(files(&spool), 1, "left for the next start");
}

#[test]
fn blocks_shrink_when_many_upload() {
    let pool = BlockPool::default();
    assert_eq!(pool.take(u64::MAX).room(), 1 << 20);
    let mut held = Vec::new();
    for (uploads, bytes) in [(64, 512 << 10), (100, 64 << 10), (1000, 16 << 10)] {
        held.resize_with(uploads, || pool.enter());
        assert_eq!(pool.take(u64::MAX).room(), bytes, "{uploads} uploads");
    }
    drop(held);
    assert_eq!(pool.take(u64::MAX).room(), 1 << 20);
}

#[test]
fn blocks_grow_with_their_upload() {
    let pool = BlockPool::default();
    let rooms = [0, 128 << 10, 300 << 10, 1 << 20].map(|before| pool.take(before).room());
    assert_eq!(rooms, [128 << 10, 128 << 10, 512 << 10, 1 << 20]);
}

#[test]
fn a_large_block_can_go_past_the_page_cache() {
    let pool = BlockPool::default();
    for before in [0, 256 << 10, 512 << 10, 1 << 20] {
        let mut blocks: Vec<_> = (0..3).map(|_| pool.take(before)).collect();
        for block in &mut blocks {
            block.fill(b"x");
            assert_eq!(block.as_ref().as_ptr().align_offset(4096), 0);
        }
    }
}

#[test]
fn a_full_disk_has_its_own_name() {
    for code in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT, rustix::io::Errno::FBIG] {
        assert!(matches!(SpoolError::from(io::Error::from(code)), SpoolError::Full(_)), "{code}");
    }
    assert!(matches!(SpoolError::from(io::Error::from(rustix::io::Errno::IO)), SpoolError::Io(_)));
}
