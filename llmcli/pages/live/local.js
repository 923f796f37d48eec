// The run program in this page: a worker, which has the weights.
const newWorker = () => new Worker(URL.createObjectURL(new Blob([byId("worker").textContent], { type: "text/javascript" })));
const program = newWorker();
const openingOf = () => { // what the program needs to run the model
  const weights = byId("weights").textContent;
  byId("weights").remove();
  return { data, weights };
};
