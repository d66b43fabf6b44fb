// A study by Nextflow, in shards: nextflow run main.nf --study phantoms --out /shared/OUT --shards 4
// Every shard runs in two stages: the tuning of all shards must end before the test cases begin.
// `process.executor` in nextflow.config (slurm, awsbatch, ...) then runs the shards anywhere OUT is mounted.
params.study  = 'phantoms'
params.out    = "${launchDir}/out/study"
params.shards = 4

// Status 9 is that of a study whose units are not all done: expected here, and the last process tells.
process TUNE {
    input:
    val shard
    output:
    val shard
    script:
    "ctflow study run ${params.study} -o ${params.out} --shard ${shard}/${params.shards} || [ \$? -eq 9 ]"
}

process TEST {
    input:
    val shard
    output:
    val shard
    script:
    "ctflow study run ${params.study} -o ${params.out} --shard ${shard}/${params.shards} || [ \$? -eq 9 ]"
}

process REPORT {
    input:
    val shards
    script:
    "ctflow study run ${params.study} -o ${params.out} --resume"
}

workflow {
    shards = Channel.of(1..params.shards)
    tuned  = TUNE(shards).collect().flatten()
    REPORT(TEST(tuned).collect())
}
