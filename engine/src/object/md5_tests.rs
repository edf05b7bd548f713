use ::md5::Digest;

use super::*;
use crate::io::SplitMix64;

fn expected(data: &[u8]) -> [u8; 16] {
    ::md5::Md5::digest(data).into()
}

#[test]
fn digests_are_those_of_the_rfc() {
    let of = |text: &str| {
        let mut md5 = Md5::new();
        md5.update(text.as_bytes());
        hex::encode(md5.finish())
    };
    assert_eq!(of(""), "d41d8cd98f00b204e9800998ecf8427e");
    assert_eq!(of("abc"), "900150983cd24fb0d6963f7d28e17f72");
    assert_eq!(of("message digest"), "f96b697d7cb7938d525a2f31aaf161d0");
}

#[test]
fn every_length_around_a_block_ends_right() {
    let data: Vec<u8> = (0..=255).collect();
    for len in 0..=data.len() {
        let mut md5 = Md5::new();
        md5.update(&data[..len]);
        assert_eq!(md5.finish(), expected(&data[..len]), "{len} bytes");
    }
}

#[test]
fn cutting_a_body_changes_nothing() {
    for seed in 0..200 {
        let mut random = SplitMix64::new(seed);
        let mut data = vec![0; usize::try_from(random.below(2000)).unwrap()];
        random.fill(&mut data);
        let mut md5 = Md5::new();
        let mut left = &data[..];
        while !left.is_empty() {
            let len = usize::try_from(random.below(150)).unwrap().min(left.len());
            md5.update(&left[..len]);
            left = &left[len..];
        }
        assert_eq!(md5.finish(), expected(&data), "seed {seed}");
    }
}

#[test]
fn lanes_do_not_touch_each_other() {
    for seed in 0..50 {
        let mut random = SplitMix64::new(seed);
        let len = usize::try_from(random.below(20) + 1).unwrap() * BLOCK;
        let bodies: Vec<Vec<u8>> = (0..4)
            .map(|_| {
                let mut data = vec![0; len];
                random.fill(&mut data);
                data
            })
            .collect();
        let [mut a, mut b, mut c, mut d] = [(); 4].map(|()| Md5::new());
        take_blocks([(&mut a, &bodies[0]), (&mut b, &bodies[1]), (&mut c, &bodies[2]), (&mut d, &bodies[3])]);
        take_blocks([(&mut b, &bodies[0]), (&mut d, &bodies[2])]);
        let and = |first: &[u8], then: &[u8]| expected(&[first, then].concat());
        assert_eq!(a.finish(), expected(&bodies[0]));
        assert_eq!(b.finish(), and(&bodies[1], &bodies[0]));
        assert_eq!(c.finish(), expected(&bodies[2]));
        assert_eq!(d.finish(), and(&bodies[3], &bodies[2]));
    }
}
