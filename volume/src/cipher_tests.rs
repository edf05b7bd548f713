use super::*;

fn unhex<const N: usize>(text: &str) -> [u8; N] {
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
    assert_eq!(text.len(), 2 * N);
    std::array::from_fn(byte)
}

/// The key of IEEE 1619's vectors for XTS-AES-256.
fn key() -> [u8; KEY_BYTES] {
    unhex(concat!(
        "2718281828459045235360287471352662497757247093699959574966967627",
        "3141592653589793238462643383279502884197169399375105820974944592"
    ))
}

fn wrapping() -> [u8; WRAPPING_BYTES] {
    std::array::from_fn(|at| u8::try_from(at).unwrap())
}

fn plain() -> Vec<u8> {
    (0..=255).cycle().take(BLOCK_LENGTH).collect()
}

/// IEEE 1619, vector 10: 512 bytes, which a longer unit begins with.
#[test]
fn vectors_of_the_standard() {
    let cipher = Cipher::new(&key());
    let mut block = plain();
    cipher.encrypt(0xff, &mut block);
    assert_eq!(block[..32], unhex::<32>("1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"));
    assert_eq!(block[496..512], unhex::<16>("c4f36ffda9fcea70b9c6e693e148c151"));
    assert_eq!(
        block[4080..],
        unhex::<16>("8e47d105a13e45d6be6eea1d496dbfd5"),
        "made by another implementation"
    );
    let mut far = plain();
    cipher.encrypt((1 << 40) + 5, &mut far);
    assert_eq!(far[..16], unhex::<16>("7bcfc60c095a603f94bd2f91a969c4a9"));
    cipher.decrypt((1 << 40) + 5, &mut far);
    assert_eq!(far, plain());
}

/// RFC 3394, 4.6, and a key of 64 bytes made by another implementation.
#[test]
fn a_wrapped_key_has_these_bytes_for_ever() {
    let data = unhex::<32>("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f");
    let wrapped = KekAes256::from(wrapping()).wrap_vec(&data).unwrap();
    assert_eq!(
        wrapped[..],
        unhex::<40>("28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21")
    );
    let ring = KeyRing::new(vec![wrapping()]);
    let expected = concat!(
        "01f29000b62a499fd0",
        "02bdc8037028be9b6a36b76c01756fbedf6361969bf1b2cd950eff88d7a0db45",
        "af2a2ab9e2ecd17ad617b3f0eaf7fd4a633699d06854af364477351f79d9a1d5",
        "7b10e426344772e6"
    );
    assert_eq!(ring.wrap(&key()).unwrap(), WrappedKey(unhex(expected)));
}

#[test]
fn blocks_of_a_range_are_encrypted_each_by_its_number() {
    let cipher = Cipher::new(&key());
    let mut both = [plain(), plain()].concat();
    cipher.encrypt(7, &mut both);
    let (first, second) = both.split_at(BLOCK_LENGTH);
    assert_ne!(first, second, "equal blocks do not look equal");
    let mut alone = plain();
    cipher.encrypt(8, &mut alone);
    assert_eq!(second, alone);
    cipher.decrypt(7, &mut both);
    assert_eq!(both, [plain(), plain()].concat());
}

#[test]
fn a_key_opens_with_what_wrapped_it_and_with_nothing_else() {
    let ring = KeyRing::new(vec![wrapping()]);
    let wrapped = ring.wrap(&key()).unwrap();
    let opened = |ring: &KeyRing, wrapped: &WrappedKey| {
        let mut block = plain();
        ring.open(wrapped).map(|cipher| {
            cipher.encrypt(0xff, &mut block);
            block[0]
        })
    };
    assert_eq!(opened(&ring, &wrapped), Ok(0x1c));
    let newer = KeyRing::new(vec![[9; WRAPPING_BYTES], wrapping()]);
    assert_eq!(opened(&newer, &wrapped), Ok(0x1c), "an older key still opens");
    let foreign = Err(CipherError::Foreign(KeyName::of(&wrapping())));
    assert_eq!(opened(&KeyRing::new(vec![[9; WRAPPING_BYTES]]), &wrapped), foreign);
    assert_eq!(opened(&KeyRing::default(), &wrapped), foreign);
    assert_eq!(KeyRing::default().wrap(&key()), Err(CipherError::NoKey));
    for at in 0..WRAPPED_BYTES {
        let mut bad = wrapped;
        bad.0[at] ^= 1;
        let wanted = if (1..=CHECK_BYTES).contains(&at) {
            CipherError::Foreign(bad.wrapped_by())
        } else {
            CipherError::Damaged
        };
        assert_eq!(opened(&ring, &bad), Err(wanted), "byte {at}");
    }
    let shown = format!("{ring:?} {wrapped:?} {:?}", ring.open(&wrapped).unwrap());
    assert_eq!(shown, "KeyRing(1) WrappedKey Cipher");
}

#[test]
fn a_key_is_wrapped_anew_and_opens_the_same_blocks() {
    let (old, new) = (wrapping(), [9; WRAPPING_BYTES]);
    let ring = KeyRing::new(vec![old]);
    let (wrapped, same) = (ring.wrap(&key()).unwrap(), ring.clone());
    assert_eq!(wrapped.wrapped_by(), KeyName::of(&old));
    assert_eq!(ring.rewrap(KeyName::of(&new), &wrapped), Err(CipherError::Foreign(KeyName::of(&new))));
    ring.replace(vec![new, old]);
    let again = same.rewrap(KeyName::of(&new), &wrapped).unwrap();
    assert_eq!(
        (again.wrapped_by(), same.rewrap(KeyName::of(&new), &wrapped)),
        (KeyName::of(&new), Ok(again))
    );
    assert_eq!(same.rewrap(KeyName::of(&new), &again), Ok(again));
    // Without the old key what was wrapped anew opens, and the same blocks come of it.
    ring.replace(vec![new]);
    assert_eq!(same.open(&wrapped).unwrap_err(), CipherError::Foreign(KeyName::of(&old)));
    let mut block = plain();
    same.open(&again).unwrap().encrypt(0xff, &mut block);
    assert_eq!(block[0], 0x1c);
    assert_eq!(KeyName::of(&[9; WRAPPING_BYTES]).to_string().len(), 16);
}
