use std::sync::Arc;

use ::md5::Digest;
use tokio::task::JoinSet;

use super::*;
use crate::io::SplitMix64;

fn body(seed: u64, most: u64) -> Bytes {
    let mut random = SplitMix64::new(seed);
    let mut data = vec![0; usize::try_from(random.below(most)).unwrap()];
    random.fill(&mut data);
    data.into()
}

/// Hashes a body in parts of random lengths.
async fn hash(hashing: Arc<Hashing>, seed: u64, mut data: Bytes) -> [u8; 16] {
    let mut random = SplitMix64::new(seed);
    let mut md5 = Md5::new();
    while !data.is_empty() {
        let len = usize::try_from(random.below(64 << 10) + 1).unwrap().min(data.len());
        md5 = hashing.update(md5, data.split_to(len)).await.unwrap();
    }
    md5.finish()
}

async fn many(bodies: u64) {
    let hashing = Arc::new(Hashing::default());
    let mut tasks = JoinSet::new();
    for seed in 0..bodies {
        let (hashing, data) = (hashing.clone(), body(seed, 1 << 20));
        tasks.spawn(async move { (data.clone(), hash(hashing, seed, data).await) });
    }
    while let Some(done) = tasks.join_next().await {
        let (data, found) = done.unwrap();
        let expected: [u8; 16] = ::md5::Md5::digest(&data).into();
        assert_eq!(found, expected, "body of {} bytes", data.len());
    }
    assert!(hashing.queue().parts.is_empty());
}

#[tokio::test]
async fn many_bodies_at_once_on_one_thread_have_their_own_digests() {
    many(23).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn many_bodies_at_once_on_several_threads_have_their_own_digests() {
    many(40).await;
}

#[tokio::test]
async fn parts_that_wait_together_are_hashed_together() {
    let hashing = Hashing::default();
    let datas: Vec<Bytes> = (0..6).map(|seed| body(seed, 100 << 10).slice(..)).collect();
    let mut waiting = Vec::new();
    for (number, data) in datas.iter().enumerate() {
        let (reply, answer) = oneshot::channel();
        let part = Part { number: number as u64, md5: Md5::new(), data: data.clone(), taken: 0, reply };
        hashing.queue().parts.push_back(part);
        waiting.push(answer);
    }
    assert!(hashing.hash_some(), "one call");
    for (data, answer) in datas.iter().zip(waiting) {
        let expected: [u8; 16] = ::md5::Md5::digest(data).into();
        assert_eq!(answer.await.unwrap().finish(), expected);
    }
    assert!(!hashing.hash_some(), "nothing is left");
}

#[tokio::test]
async fn an_upload_that_goes_takes_its_part_along() {
    let hashing = Hashing::default();
    {
        let mut gone = Box::pin(hashing.update(Md5::new(), vec![1; LEAST].into()));
        assert!(polled_once(gone.as_mut()).await.is_pending());
        assert_eq!(hashing.queue().parts.len(), 1);
    }
    assert!(hashing.queue().parts.is_empty());
}

async fn polled_once<F: Future + Unpin>(mut future: F) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(std::pin::Pin::new(&mut future).poll(context))).await
}
