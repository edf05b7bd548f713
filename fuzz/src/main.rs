//! The command `quarry-fuzz`.
fn main() {
    for seed in 0..30 { let t = std::time::Instant::now(); match quarry_fuzz::store::history(seed, Default::default()) { Ok(s) => println!("{seed} {:?} {s:?}", t.elapsed()), Err(e) => println!("{seed} {e}") } }
}
