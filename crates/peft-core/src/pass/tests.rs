use super::*;

/// How many times two layers of a pass make a value that is the same for both, and what they get.
fn made_in(pass: &Pass<'_>, owner: ParamId) -> (usize, Vec<f32>) {
    let mut count = 0;
    let mut layer = |pass: &Pass<'_>| {
        let value = pass.once(owner, || {
            count += 1;
            Tensor::full([1, 1], count as f32, &Device::flex())
        });
        value.into_scalar::<f32>()
    };
    let values = vec![layer(pass), layer(&pass.part(0))];
    (count, values)
}

#[test]
fn what_layers_share_is_made_once_a_pass_also_by_those_of_a_part() {
    let (owner, pass) = (ParamId::new(), Pass::new());
    assert_eq!(made_in(&pass, owner), (1, vec![1.0, 1.0]));
    assert_eq!(made_in(&Pass::new(), owner), (1, vec![1.0, 1.0]));
    let other = ParamId::new();
    assert_eq!(made_in(&pass, other), (1, vec![1.0, 1.0]));
}

#[test]
fn layers_computed_again_make_it_each_for_its_own_backward_pass() {
    let pass = Pass::new().again(None);
    assert_eq!(made_in(&pass, ParamId::new()), (2, vec![1.0, 2.0]));
}
