//! Chapter `reduction`: sums, extremes, norms, softmax, the matrix product, and eigenvalues.

use super::*;
use amscript_tensor::array::{dimension, extreme};
use amscript_tensor::{Tensor, array, eigen};

/// Over all numbers, over one dimension, or over an array of dimensions; a reduced dimension goes.
#[export_module(manifest)]
pub mod reduction {
    use super::*;

    /// The sum.
    ///
    /// ```rhai
    /// let x = tensor([[1, 2], [3, 4]]);
    /// x.sum()         //=> tensor(10.0)
    /// x.sum(0)        //=> tensor([4.0, 6.0])
    /// x.sum([0, 1])   //=> tensor(10.0)
    /// x.sum(2)        //=> error: sum: expected a dimension from -2 to 1 for shape [2, 2], got 2
    /// ```
    #[rhai_fn(return_raw)]
    pub fn sum(x: Tensor) -> RhaiResultOf<Tensor> {
        Ok(x.sum_all()?)
    }

    #[rhai_fn(name = "sum", return_raw)]
    pub fn sum_of(x: Tensor, dim: i64) -> RhaiResultOf<Tensor> {
        Ok(x.sum(dimension(&x, dim, "sum")?)?)
    }

    #[rhai_fn(name = "sum", return_raw)]
    pub fn sum_over(x: Tensor, dims: Array) -> RhaiResultOf<Tensor> {
        Ok(x.sum(dimensions(&x, dims, "sum")?)?)
    }

    /// The mean.
    ///
    /// ```rhai
    /// let x = tensor([[1, 2], [3, 4]]);
    /// x.mean()        //=> tensor(2.5)
    /// x.mean(-1)      //=> tensor([1.5, 3.5])
    /// x.mean([0, 1])  //=> tensor(2.5)
    /// ```
    #[rhai_fn(return_raw)]
    pub fn mean(x: Tensor) -> RhaiResultOf<Tensor> {
        Ok(x.mean_all()?)
    }

    #[rhai_fn(name = "mean", return_raw)]
    pub fn mean_of(x: Tensor, dim: i64) -> RhaiResultOf<Tensor> {
        Ok(x.mean(dimension(&x, dim, "mean")?)?)
    }

    #[rhai_fn(name = "mean", return_raw)]
    pub fn mean_over(x: Tensor, dims: Array) -> RhaiResultOf<Tensor> {
        Ok(x.mean(dimensions(&x, dims, "mean")?)?)
    }

    /// The standard deviation with the unbiased estimate of the variance.
    ///
    /// ```rhai
    /// tensor([1, 2, 3, 4]).std()           //=> tensor(1.29099)
    /// tensor([[1, 2], [4, 8]]).std(1)      //=> tensor([0.707107, 2.82843])
    /// tensor([[1, 2], [4, 8]]).std([0, 1]) //=> tensor(3.0957)
    /// tensor([1]).std()                    //=> error: std: expected at least two values
    /// ```
    #[rhai_fn(return_raw)]
    pub fn std(x: Tensor) -> RhaiResultOf<Tensor> {
        Ok(array::std(&x, &[])?)
    }

    #[rhai_fn(name = "std", return_raw)]
    pub fn std_of(x: Tensor, dim: i64) -> RhaiResultOf<Tensor> {
        Ok(array::std(&x, &[dimension(&x, dim, "std")?])?)
    }

    #[rhai_fn(name = "std", return_raw)]
    pub fn std_over(x: Tensor, dims: Array) -> RhaiResultOf<Tensor> {
        Ok(array::std(&x, &dimensions(&x, dims, "std")?)?)
    }

    /// The largest number.
    ///
    /// ```rhai
    /// let x = tensor([[1, 2], [4, 3]]);
    /// x.max()    //=> tensor(4.0)
    /// x.max(0)   //=> tensor([4.0, 3.0])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn max(x: Tensor) -> RhaiResultOf<Tensor> {
        Ok(extreme(&x, true)?)
    }

    #[rhai_fn(name = "max", return_raw)]
    pub fn max_of(x: Tensor, dim: i64) -> RhaiResultOf<Tensor> {
        Ok(x.max(dimension(&x, dim, "max")?)?)
    }

    /// The smallest number.
    ///
    /// ```rhai
    /// let x = tensor([[1, 2], [4, 3]]);
    /// x.min()    //=> tensor(1.0)
    /// x.min(1)   //=> tensor([1.0, 3.0])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn min(x: Tensor) -> RhaiResultOf<Tensor> {
        Ok(extreme(&x, false)?)
    }

    #[rhai_fn(name = "min", return_raw)]
    pub fn min_of(x: Tensor, dim: i64) -> RhaiResultOf<Tensor> {
        Ok(x.min(dimension(&x, dim, "min")?)?)
    }

    /// The place of the largest number along a dimension.
    ///
    /// ```rhai
    /// tensor([[1, 2], [4, 3]]).argmax(1)   //=> tensor([1, 0])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn argmax(x: Tensor, dim: i64) -> RhaiResultOf<Tensor> {
        Ok(x.argmax(dimension(&x, dim, "argmax")?)?)
    }

    /// The sums of the numbers so far along a dimension.
    ///
    /// ```rhai
    /// tensor([1, 2, 3]).cumsum(0)   //=> tensor([1.0, 3.0, 6.0])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn cumsum(x: Tensor, dim: i64) -> RhaiResultOf<Tensor> {
        Ok(x.cumsum(dimension(&x, dim, "cumsum")?)?)
    }

    /// The Euclidean norm; its gradient at zero is zero.
    ///
    /// ```rhai
    /// let x = tensor([[3, 4], [6, 8]]);
    /// x.norm(1)        //=> tensor([5.0, 10.0])
    /// x.norm([0, 1])   //=> tensor(11.1803)
    /// x.norm()         //=> tensor(11.1803)
    /// ```
    #[rhai_fn(return_raw)]
    pub fn norm(x: Tensor) -> RhaiResultOf<Tensor> {
        Ok(array::norm(&x, &[])?)
    }

    #[rhai_fn(name = "norm", return_raw)]
    pub fn norm_of(x: Tensor, dim: i64) -> RhaiResultOf<Tensor> {
        Ok(array::norm(&x, &[dimension(&x, dim, "norm")?])?)
    }

    #[rhai_fn(name = "norm", return_raw)]
    pub fn norm_over(x: Tensor, dims: Array) -> RhaiResultOf<Tensor> {
        Ok(array::norm(&x, &dimensions(&x, dims, "norm")?)?)
    }

    /// Positive weights that sum to one along a dimension: exp(x) over its sum.
    ///
    /// ```rhai
    /// tensor([0, 0]).softmax(0)          //=> tensor([0.5, 0.5])
    /// tensor([[1000, 1000]]).softmax(-1) //=> tensor([[0.5, 0.5]])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn softmax(x: Tensor, dim: i64) -> RhaiResultOf<Tensor> {
        Ok(array::softmax(&x, dimension(&x, dim, "softmax")?)?)
    }

    /// The logarithm of softmax, exact where softmax is tiny.
    ///
    /// ```rhai
    /// tensor([0, 0]).log_softmax(0)       //=> tensor([-0.693147, -0.693147])
    /// tensor([0, 1000]).log_softmax(0)    //=> tensor([-1000.0, 0.0])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn log_softmax(x: Tensor, dim: i64) -> RhaiResultOf<Tensor> {
        let normalizer = array::log_sum_exp(&x, dimension(&x, dim, "log_softmax")?)?;
        Ok(x.broadcast_sub(&normalizer)?)
    }

    /// The logarithm of the sum of exponentials along a dimension, or of all numbers; minus infinity where all are.
    ///
    /// ```rhai
    /// tensor([0, 0]).log_sum_exp()                     //=> tensor(0.693147)
    /// tensor([[1000, 1000], [0, -infinity()]]).log_sum_exp(1)   //=> tensor([1000.69, 0.0])
    /// tensor([-infinity(), -infinity()]).log_sum_exp()          //=> tensor(-inf)
    /// ```
    #[rhai_fn(return_raw)]
    pub fn log_sum_exp(x: Tensor) -> RhaiResultOf<Tensor> {
        Ok(array::log_sum_exp(&x.flatten_all()?, 0)?.squeeze(0)?)
    }

    #[rhai_fn(name = "log_sum_exp", return_raw)]
    pub fn log_sum_exp_of(x: Tensor, dim: i64) -> RhaiResultOf<Tensor> {
        let dim = dimension(&x, dim, "log_sum_exp")?;
        Ok(array::log_sum_exp(&x, dim)?.squeeze(dim)?)
    }

    /// The matrix product; leading dimensions broadcast.
    ///
    /// ```rhai
    /// matmul(tensor([[1, 2]]), tensor([[3], [4]]))   //=> tensor([[11.0]])
    /// matmul(zeros([2, 3]), zeros([2, 3]))           //=> error: matmul: expected [.., n, k] and [.., k, m], got [2, 3] and [2, 3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn matmul(a: Tensor, b: Tensor) -> RhaiResultOf<Tensor> {
        Ok(array::matmul(&a, &b)?)
    }

    /// The eigenvalues and eigenvectors of a symmetric matrix: `values` `[n]`, the smallest first, and `vectors` `[n, n]`, a column each, in f64. No gradient.
    ///
    /// ```rhai
    /// let found = symmetric_eigen(tensor([[2, 1], [1, 2]]));
    /// assert_close(found.values, tensor([1, 3]), 1e-12);
    /// assert_close(found.vectors.abs(), full([2, 2], sqrt(0.5)), 1e-6);
    /// symmetric_eigen(tensor([[2, 1], [0, 2]]))      //=> error: symmetric_eigen: expected a symmetric matrix
    /// symmetric_eigen(zeros([2, 3]))                 //=> error: symmetric_eigen: expected a square matrix, got shape [2, 3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn symmetric_eigen(x: Tensor) -> RhaiResultOf<Map> {
        let (values, vectors) = eigen::symmetric_eigen(&x)?;
        Ok(Map::from([("values".into(), Dynamic::from(values)), ("vectors".into(), Dynamic::from(vectors))]))
    }
}

fn dimensions(x: &Tensor, dims: Array, function: &str) -> Result<Vec<usize>> {
    option::list::<i64>(dims, function)?.into_iter().map(|d| dimension(x, d, function)).collect()
}
