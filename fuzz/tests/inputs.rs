//! Every target holds on its seeds and on a fixed number of changed inputs.

use quarry_fuzz::inputs::{Source, TARGETS, fuzz};

#[test]
fn every_target_holds() {
    for target in TARGETS {
        if let Err(broken) = fuzz(target, 1, |count| count < 4000) {
            panic!("{}: {}: {:02x?}", target.name, broken.what, broken.input);
        }
    }
}

#[test]
fn equal_seeds_make_equal_inputs() {
    for target in TARGETS {
        let inputs = |seed| {
            let mut source = Source::new(target, seed);
            (0..50).map(|_| source.make()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(7), inputs(7), "{}", target.name);
        assert_ne!(inputs(7), inputs(8), "{}", target.name);
    }
}
