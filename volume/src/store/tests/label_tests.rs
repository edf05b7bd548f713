use super::*;

#[test]
fn version_1_never_changes() {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let label = Label {
        name: "vol".into(),
        description: "d".into(),
        bytes: 0x0102_0304,
        slice_bytes: 1 << 30,
        made: 0x1112,
        ..Label::default()
    };
    let expected = "010403020100000000000000400000000012110000000000000300766f6c010064";
    assert_eq!(hex(label.encode()), expected);
    assert_eq!(Label::decode(&label.encode()), Ok(label.clone()));
    let locked = Label { key: Some(WrappedKey([7; 81])), ..label };
    assert_eq!(hex(locked.encode()), format!("02{}015100{}", &expected[2..], "07".repeat(81)));
    assert_eq!(Label::decode(&locked.encode()), Ok(locked.clone()));
    let mut all = Label { going: true, ..locked };
    all.limits.0[5] = Rate { per_second: 0x0102, burst: 3 };
    let limits = "0211000502010000000000000300000000000000";
    assert_eq!(hex(all.encode()), format!("02{}015100{}{limits}030000", &expected[2..], "07".repeat(81)));
    assert_eq!(Label::decode(&all.encode()), Ok(all));
    let snapshot = SnapshotLabel { name: "s".into(), bytes: 0x2000, made: 0x1112, going: false };
    assert_eq!(hex(snapshot.encode()), "0112110000000000000020000000000000010073");
    assert_eq!(SnapshotLabel::decode(&snapshot.encode()), Ok(snapshot.clone()));
    let going = SnapshotLabel { going: true, ..snapshot };
    assert_eq!(hex(going.encode()), "0212110000000000000020000000000000010073");
    assert_eq!(SnapshotLabel::decode(&going.encode()), Ok(going));
    let fence = Fence { epoch: 5, configuration: 6 };
    assert_eq!(hex(encode_promise(fence)), "01050000000000000006000000");
    assert_eq!(decode_promise(&encode_promise(fence)), Ok(fence));
}

#[test]
fn members_have_these_bytes_for_ever() {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let turns = vec![Turn { epoch: 2, base: 3 }];
    let whole = MemberLabel {
        volume: VolumeId([7; 16]),
        generation: 5,
        whole: true,
        turns,
        end: 0,
        kept: true,
        former: None,
    };
    let turn = "02000000000000000300000000000000";
    assert_eq!(hex(whole.encode()), format!("01{}050000000101{turn}", "07".repeat(16)));
    let emptied = MemberLabel { whole: false, end: 9, kept: false, ..whole.clone() };
    let expected = format!("02{}050000000001{turn}0900000000000000", "07".repeat(16));
    assert_eq!(hex(emptied.encode()), expected);
    let partial = MemberLabel { kept: true, ..emptied.clone() };
    assert_eq!(hex(partial.encode()), format!("04{}", &expected[2..]));
    let beside = MemberLabel { former: Some(4), ..emptied.clone() };
    let expected = format!("03{}050000000001{turn}090000000000000004000000", "07".repeat(16));
    assert_eq!(hex(beside.encode()), expected);
    let later = MemberLabel { former: Some(5), ..emptied.clone() };
    assert_eq!(MemberLabel::decode(&later.encode()), Err(BadLabel), "what it was came before it");
    // Of before there was version 4: the first generation never is one that was emptied.
    let first = MemberLabel { generation: 1, ..emptied.clone() };
    assert_eq!(MemberLabel::decode(&first.encode()), Ok(MemberLabel { kept: true, ..first }));
    for label in [whole, emptied, partial, beside] {
        let good = label.encode();
        assert_eq!(MemberLabel::decode(&good), Ok(label));
        for cut in 0..good.len() {
            assert_eq!(MemberLabel::decode(&good[..cut]), Err(BadLabel), "cut at {cut}");
        }
        assert_eq!(MemberLabel::decode(&[&good, &[0][..]].concat()), Err(BadLabel));
    }
}

#[test]
fn anything_else_is_refused() {
    let label = Label { name: "v".into(), bytes: 1, slice_bytes: 2, made: 3, ..Label::default() };
    let good = label.encode();
    let locked = Label { key: Some(WrappedKey([7; 81])), ..label }.encode();
    for good in [&good, &locked] {
        for cut in 0..good.len() {
            assert_eq!(Label::decode(&good[..cut]), Err(BadLabel), "cut at {cut}");
        }
        assert_eq!(Label::decode(&[good, &[0][..]].concat()), Err(BadLabel));
    }
    let mut newer = good;
    newer[0] = 2;
    assert_eq!(Label::decode(&newer), Err(BadLabel));
    assert!(decode_promise(&[1; 12]).is_err() && SnapshotLabel::decode(&[]).is_err());
}

#[test]
fn names_have_no_separators() {
    for good in ["vol", "a.b-c_d", "ü", &"n".repeat(255)] {
        assert!(is_name(good), "{good}");
    }
    for bad in ["", "a b", "a@b", "a/b", "a:b", "a?b", "a#b", "a\n", &"n".repeat(256)] {
        assert!(!is_name(bad), "{bad}");
    }
}
